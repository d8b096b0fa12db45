"""Checks that find what is wrong between programs and a broker, and say what to do. They only read."""
