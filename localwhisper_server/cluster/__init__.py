"""The same app on Ray Serve: an HTTP face that decodes and cuts, and replicas that hold a model and a queue each."""
