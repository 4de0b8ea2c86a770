"""The storage engines that come with the package."""
