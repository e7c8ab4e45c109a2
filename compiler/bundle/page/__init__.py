"""The report as one page that needs no network: pictures and styles inside, light and dark."""
