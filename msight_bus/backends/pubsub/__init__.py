"""The code that the Redis, NATS and memory backends share: publishing and subscribing without persistence."""
