"""The program in the cloud or on the site: devices, releases, rollouts, trust, console and API."""
