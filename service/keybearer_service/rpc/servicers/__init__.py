"""One servicer for each service: read the request, call the use case, render the answer."""
