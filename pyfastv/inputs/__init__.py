"""What a request is about: pictures, videos, messages."""
