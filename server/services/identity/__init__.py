"""Who a device is: claims, approval, certificates, their authority, and their end."""
