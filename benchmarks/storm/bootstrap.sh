#!/bin/bash
# JupyterHub's bootstrap script, with a local archive for the download, and the owner set.
USER=$1
BASE_DIRECTORY=$2
if [ "$USER" == "" ]; then
    exit 1
fi
USER_DIRECTORY=$BASE_DIRECTORY/$USER
if [ -d "$USER_DIRECTORY" ]; then
    exit 0
fi
mkdir "$USER_DIRECTORY"
mkdir "$USER_DIRECTORY/tutorials"
cd "$USER_DIRECTORY/tutorials" || exit 1
tar -xzf "$3"
chown -R "$4" "$USER_DIRECTORY"
exit 0
