"""A model in the forms that services deploy, and how much of it each form keeps."""
