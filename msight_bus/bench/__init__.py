"""Measuring buses and what they are compared with: honest figures from separate processes.

A `Candidate` names a subscriber and a publisher; `Stage` runs them against a broker, in rounds, and gives back what each
side saw. Everything that is compared goes through the same code, with the same payloads and the same flow control.
"""
