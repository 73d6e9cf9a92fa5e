"""The app: one file a tab. Everything below reads and writes through `talk`, `report` and the store."""
