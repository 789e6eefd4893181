"""Checks of what is guaranteed: small in every run of the tests, at full size by an option.

``--record`` writes what they have found into the pages of docs/.
"""
