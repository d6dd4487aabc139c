"""The OpenAPI description of the API, derived from the routes and Structs, and the page that shows it.

May import the server's ``operations`` and the Structs that other folders define, and no route.
"""
