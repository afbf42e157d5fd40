"""From a presented credential and a rule to an identity or a denial: what all guards share."""
