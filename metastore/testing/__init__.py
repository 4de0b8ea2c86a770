"""What those who write plug-ins test them with."""
