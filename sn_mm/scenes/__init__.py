"""Real-pixel scenes with exact masks: sources of pixels, composition, and the three layouts."""
