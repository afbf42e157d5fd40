"""The clients of the API: channels, requests, retries, and verifiers that ask every time."""
