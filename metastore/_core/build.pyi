def build_info() -> dict[str, str]: ...  # facts of this build by name
