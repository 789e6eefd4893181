"""The backend for CUDA."""
