"""The viewer: a web server on the loopback interface that shows results at full resolution in a browser."""
