"""The journal: a node's own durable file of channels, vouchers, receipts, budgets, keys and intents."""
