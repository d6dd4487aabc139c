"""The description of the API, made from what the server runs on, and the page that shows it."""
