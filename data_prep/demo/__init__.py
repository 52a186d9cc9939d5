"""The drawing of the demo data: nothing here is about real fungi or real works of art."""
