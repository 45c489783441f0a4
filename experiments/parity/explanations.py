EXPLANATIONS: dict = {}
