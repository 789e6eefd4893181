"""Operations on whole models: converting norms, reverting them, measuring their statistics."""
