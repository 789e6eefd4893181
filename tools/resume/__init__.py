"""Trainings that are killed, resumed and compared with undisturbed ones; for check_resume.py."""
