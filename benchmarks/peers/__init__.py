"""The clients' own ways and the other frameworks, each in the idiom that its documentation shows."""
