"""Parts that both training scripts share; nothing here knows which script called it."""
