"""OpenAI's Responses and Conversations: what is asked, what is kept, and how an answer is told event by event."""
