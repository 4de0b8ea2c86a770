"""What an encoded request asks for, as far as admission must know it. Nothing here is for Python."""
