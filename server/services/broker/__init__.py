"""Set-up of brokers other than the embedded one."""
