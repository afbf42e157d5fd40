"""The command `keybearer`: how it asks, what it answers, and its commands, a module a group."""
