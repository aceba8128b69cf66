"""The models and loops behind published figures."""
