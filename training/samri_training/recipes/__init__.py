"""Recipes: whole trainings, from data to bundle, that a person can repeat with one command."""
