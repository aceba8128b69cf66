UNRUNNABLE: dict[str, str] = {}
