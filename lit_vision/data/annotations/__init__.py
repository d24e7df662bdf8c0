"""Annotation readers (COCO JSON, YOLO text files, Pascal VOC XML, PNG masks) and their data module."""
