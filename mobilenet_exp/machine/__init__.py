"""The process and the computer it runs on: device, peers, signals, locks, versions."""
