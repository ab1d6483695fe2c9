"""Every option of Castor: typed, documented, validated."""
