"""How the catalog's schema came to be, step by step; run when the store starts."""
