"""Tests of jaxnets.inspection."""
