"""Hardware profiles shipped as YAML data; README.md explains the fields."""
