"""What the modules do, without Ansible: plain Python >= 3.9, standard library only."""
