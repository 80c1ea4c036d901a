"""What every command needs: flags, errors, signals, processes, backends."""
