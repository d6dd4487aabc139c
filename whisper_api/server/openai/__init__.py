"""What the routes under ``/v1`` take and give: the fields, bodies and errors that OpenAI's clients know."""
