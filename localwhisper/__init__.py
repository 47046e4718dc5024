"""The OpenAI SDK that tries the house first."""
