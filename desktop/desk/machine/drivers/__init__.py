"""The drivers, each behind ``desk.machine.driver.Driver``; ``table`` names them."""
