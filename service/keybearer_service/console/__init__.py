"""The console: pages for administrators."""
