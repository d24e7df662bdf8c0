"""Label images on a page: the store of answers, the queue of images, the model that learns along, the API."""
