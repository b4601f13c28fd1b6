"""The studio's page: panels build components, handlers answer events, one catalogue holds the text. Knows no torch."""

from ui.studio import create_ui, launch_options

__all__ = ["create_ui", "launch_options"]
