"""What several tests share: small real scans, models and stores, and independent references."""
