"""Text to token ids: prompt formats, samples, orders."""
