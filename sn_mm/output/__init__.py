"""What commands write: files, figures, tables in Markdown."""
