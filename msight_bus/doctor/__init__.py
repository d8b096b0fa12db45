"""Checks that find faults between programs and a broker, with a remedy for each. No check changes anything."""
